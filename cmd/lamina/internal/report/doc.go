// Package report reads the folders of training runs and writes their curves, figures and sample texts as one
// HTML page that loads nothing else, or their steps as CSV.
package report
