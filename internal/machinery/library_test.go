package machinery

import (
	"os"
	"os/signal"
	"syscall"
	"testing"

	"k8s.io/client-go/util/workqueue"
)

func TestLibraryThatCannotStartIsAnError(t *testing.T) {
	catchFatal()
	queue := newClaimQueue(0, 1, workqueue.NewTypedDelayingQueue[any](), admitAll)
	defer queue.ShutDown()
	i := &instance{queue: queue, stop: make(chan struct{}), done: make(chan struct{}), injection: injection{registered: make(chan struct{})}}
	ended := make(chan error, 1)
	// An address that no client can be made from.
	i.run(librarySettings{metrics: newLibraryMetrics(), namespace: "ns", connection: &connection{host: "%"}}, ended)
	if err := <-ended; err == nil {
		t.Error("no error although there is no such server")
	}
}

// TestSignalStopsOnce sends the process SIGTERM, upon which the library closes its stop channels: closing them once more
// would end the process with a panic.
func TestSignalStopsOnce(t *testing.T) {
	w := newWorld(t, fill(t))
	for range 2 {
		w.startController()
		w.addRange("range")
		claim := w.addClaim("claim", "range")
		w.waitFilled(claim)
		// The signal is delivered some time after the call that sends it; without a handler, which stopping removes, it would
		// end the process.
		delivered := make(chan os.Signal, 1)
		signal.Notify(delivered, syscall.SIGTERM)
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-delivered
		w.stop()
		w.startController()
		w.remove(claim)
		w.waitGone(claim)
		w.stop()
		cbr := w.addRange("unused")
		w.remove(cbr)
		w.eventually("the ranges are gone", func() bool {
			gone := !w.get(cbr)
			cbr.Name = "range"
			w.remove(cbr)
			return gone && !w.get(cbr)
		})
	}
}
