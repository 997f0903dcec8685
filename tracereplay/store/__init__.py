"""Golden traces at URLs: brought to this machine, put there, listed.

    URL ──kept──▶ HOME/goldens/DIGEST-KEY.pack ──▶ engines, which read files
    local pack ──uploading──▶ URL                  whole, or not there
    listing(URL or folder) ──▶ name, digest, date, engine, model, size, requests

For the analyst's side; reading by ranges, which needs none of this, is `storage.remote`.
"""
