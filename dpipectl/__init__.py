"""The client of dpiped: a few verbs over its Unix socket."""
