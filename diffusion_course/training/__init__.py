"""Training: one compiled update, the loop around it, devices, saved states and recipes."""
