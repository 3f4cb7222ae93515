"""Measurements against peers: `polyvit bench NAME`.

In: a config or data, and what to compare. Out: tables and JSON.
Read: main, kit, step, cotrain, feed, decode.
"""
