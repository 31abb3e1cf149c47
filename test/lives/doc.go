// Package lives tests what a claim can live through: the whole controller (reconciler and machinery, as cmd/controller
// wires them) runs against a real API server, and the tests play everything else: the provisioner, the volume binder, the
// snapshot controller, the scheduler, the kubelet and the namespace controller. They delete, break and restart at every
// step and check that nothing of ours is left, that nothing hangs in Terminating, and that a claim whose data was complete has
// it.
//
// Many claims live at once, each in a namespace of its own with its own storage class and CSI driver, so that what happens to one
// does not touch the others. Nobody sleeps: a check is repeated when an object of its claim changes, until a deadline.
//
//	go test -race ./test/lives -seed 42        the same random choices again
//	go test -race ./test/lives -pairs -1       every pair of deletions, not a sample
package lives
