// Package size lets tests do the same with less when they run with -short, as every change is tested. The full size runs every
// night and whenever -short is not said.
package size

import (
	"cmp"
	"testing"
)

// Of returns full, or short with -short. The short size has to be large enough to fail for every reason for which the full one does.
func Of(full, short int) int {
	if testing.Short() {
		return short
	}
	return full
}

// Or returns what a flag chose, or Of(full, short) if that is 0.
func Or(chosen, full, short int) int { return cmp.Or(chosen, Of(full, short)) }
