"""What a notebook needs: `setup`, figures and explorers."""
