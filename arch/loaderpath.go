package arch

// LoaderPath is the path under which a loader has the module that a file calls module.
func (m *Model) LoaderPath(l Loader, module string) string { return m.path(l, module) }
