"""Facts about a Jetson, from plain files of /proc, /sys and /etc: board, JetPack, power mode, and its sensors."""
