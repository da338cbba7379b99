"""The capstone's leaderboard: samplers of one frozen backbone, at 1, 2, 4 and 8 evaluations.

Read `game` first: the harness keeps the network and counts. Then `playing`, what a submission may
use; `scores`; `match`, which plays a submission in the sandbox; `board`, which plays a folder.
"""
