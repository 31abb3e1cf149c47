// Package cluster measures the controller on a real cluster: how long claims take until they are Bound, beside the time
// that plain pods with plain volumes take there, and beside upstream's sample populator, and how much each writes to the
// API server.
package cluster
