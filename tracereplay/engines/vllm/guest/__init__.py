"""What runs in the engine's own processes: the plugin, the workers' control, and the driver that generates.

A separate package because it uses both recorder and replayer, which must not know each other. It may import only
what the engine's environment has.
"""
