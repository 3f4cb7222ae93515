"""Measurements against peers: `polyvit bench NAME`.

In: a config or data, and what to compare. Out: tables and JSON.
Read: main, kit, step, step_peers, cotrain, gpu, gpu_counts, feed, feed_sides, decode, decode_media, decode_peers,
decode_sequences.
"""
