"""Words everybody uses: nouns, states, errors, settings, plug-in registry. Imports nothing of ours."""
