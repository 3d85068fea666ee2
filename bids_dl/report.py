"""HTML."""
def write_participant(out, pid): pass
def write_methods(out, level): pass
def write_all(out, level): pass
