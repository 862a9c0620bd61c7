"""The page on which people judge: a local server, a template, a little plain JavaScript; no build step, no network."""
