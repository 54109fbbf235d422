package webtools

// Simplify is for tests that count the work of the parser.
var Simplify = simplify

// MaxSteps is the budget of a page.
const MaxSteps = maxSteps

// Results reads the answer of a provider.
func Results(kind string, body []byte) ([]Result, error) { return Provider{Kind: kind}.results(body) }

// The bounds of results.
const (
	MaxTitle = maxTitle
	MaxText  = maxSnippet
	MaxURL   = maxURL
)
