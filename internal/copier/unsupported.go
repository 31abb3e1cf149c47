//go:build !linux

package copier

import (
	"context"
	"runtime"
)

// Run refuses: punching holes, direct I/O and the checks of devices are Linux's.
func Run(context.Context, Options) (Result, error) {
	return Result{}, refuse("volumes can be copied on Linux only, this is %s; run it in a pod", runtime.GOOS)
}
