"""What operator and agents say to each other and to the API server: states, goals, types, errors, models."""

PROTOCOL_VERSION = 1
API_GROUP = "vfiomigration.io"
API_VERSION = "v1alpha1"
