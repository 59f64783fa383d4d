"""HTTP mechanics of the api process: keys, bodies, errors, streaming and collecting output. Knows no route."""
