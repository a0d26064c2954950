"""The ModelForge REST API: one training at a time, the models it made, and a playground to ask them."""
