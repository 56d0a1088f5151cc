"""What operator and agents say to each other and to the API server: states, goals, types, errors, models."""

# What agents say in Hello; version N serves N-1 too. 1 was never released.
PROTOCOL_VERSION = 2
API_GROUP = "vfiomigration.io"
API_VERSION = "v1alpha1"
