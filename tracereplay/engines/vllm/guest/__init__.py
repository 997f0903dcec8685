"""What runs in the engine's own processes: the plugin, its control, and the driver that generates.

Why a package of its own: recording and replaying meet here, and neither should know the other. Nothing
in it may import what the engine's environment does not have.
"""
