package pull

// ParseRange is parseRange, for tests.
func ParseRange(text string) (from, to, total int64, err error) {
	r, err := parseRange(text)
	return r.from, r.to, r.total, err
}

// ParseTree is parseTree, for tests.
func ParseTree(text []byte) ([]File, error) { return parseTree(text) }
