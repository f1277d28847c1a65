"""A page that tells ages in the browser: static files, no server's code, no other host.

    python -m agelib.browser

builds it in `dist/page`. Any server of files shows it: `python -m http.server -d
dist/page`.
"""
