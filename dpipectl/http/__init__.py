"""The HTTP shim: ControlPilot's calls, and more, as requests to the daemon's socket.

It has no access to a training of its own, so it may be restarted, flooded or killed without touching one.
"""
