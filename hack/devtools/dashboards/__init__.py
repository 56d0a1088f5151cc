"""The Grafana dashboards: declared as data, made into Grafana's JSON, queried, and drawn."""
