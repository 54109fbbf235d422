package plan

// Approximate is Place without the exact search over few hosts.
func Approximate(r Request) (*Plan, error) {
	r.approximate = true
	return Place(r)
}
