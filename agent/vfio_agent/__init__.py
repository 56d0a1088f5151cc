"""The node agent: drives local VFIO devices through a migration as the operator says."""
