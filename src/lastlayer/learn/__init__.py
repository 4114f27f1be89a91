"""``lastlayer learn``: ten lessons on a local page, where every number can be dragged or typed and everything follows.

lesson -> api -> server -> command. A lesson is data and one Python function; the page under static/ draws what that
function answers and computes nothing itself. Importing this package imports none of what the `learn` extra brings.
"""
