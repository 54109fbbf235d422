package consul

// UntilList is the pause of a reader after a list of documents.
var UntilList = untilList
