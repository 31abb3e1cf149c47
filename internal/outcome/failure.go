package outcome

import (
	"encoding/json"
	"fmt"
	"time"
)

// Failure is what decides about the next attempt once one has failed. It is read from the failed pod. Before that is removed, it
// is written to the prime claim, where it outlives the pod and a restart of the controller, and goes with the volume that it
// is about.
type Failure struct {
	// SourceUID is the UID of the ChangedBlockRange.
	SourceUID string `json:"sourceUID"`
	// Source and Setting are fingerprints of what the list was to be made from, and how.
	Source  string `json:"source"`
	Setting string `json:"setting"`
	// Reason and Message are the populator's own; empty if it left no result.
	Reason  Reason `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	// Attempt counts from 1.
	Attempt int       `json:"attempt"`
	At      time.Time `json:"at"`
}

// Marshal renders f for an annotation.
func (f Failure) Marshal() (string, error) {
	data, err := json.Marshal(f)
	if err != nil {
		return "", fmt.Errorf("encode a failure: %w", err)
	}
	return string(data), nil
}

// ParseFailure reads an annotation; ok is false if Marshal did not write it.
func ParseFailure(annotation string) (f Failure, ok bool) {
	if err := json.Unmarshal([]byte(annotation), &f); err != nil || f.Attempt < 1 {
		return Failure{}, false
	}
	return f, true
}
