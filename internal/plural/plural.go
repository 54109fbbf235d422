// Package plural writes counts as people read them: "1 file", and "2 files".
package plural

import "fmt"

// Of returns n with a noun, which gets an s unless n is 1.
func Of[N int | int32 | int64 | uint32 | uint64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
