package webtools

// Simplify is for tests that count the work of the parser.
var Simplify = simplify

// MaxSteps is the budget of a page.
const MaxSteps = maxSteps
