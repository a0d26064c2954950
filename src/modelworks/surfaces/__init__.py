"""Five foreign APIs over the same services, a folder each: wire, translate, routes, `__main__`. No logic here."""
