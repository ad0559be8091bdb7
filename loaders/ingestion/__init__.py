"""Sources to one cell store: genes aligned, cells shuffled out of core by several processes, resumed after a kill.

It may import `cells` and what `cells` may.
"""
