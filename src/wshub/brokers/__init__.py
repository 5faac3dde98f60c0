"""Brokers join hubs: those of the processes of one machine, or of several machines."""
