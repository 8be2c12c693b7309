"""Export: from a checkpoint to a bundle. Imported as `edgekit.export`; a device never loads it."""
