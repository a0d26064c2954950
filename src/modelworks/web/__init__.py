"""What every HTTP door needs: the services, large bodies, event streams, an engine's answer, the port's persona."""
