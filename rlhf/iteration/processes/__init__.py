"""Stages as processes: started cold or warm, given GPUs, watched, stopped, started again, and why one failed, in words.

The driver decides what runs; how it runs on this machine is here, a file a concern.
"""
