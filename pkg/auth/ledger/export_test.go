package ledger

// Pause returns the time after a report of a size.
var Pause = pause
