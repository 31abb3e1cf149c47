// Package notice keeps what events say within what the API server takes: it refuses an event whose note is longer, and whoever sent
// that is not told.
package notice

import "strings"

// MaxBytes is the API's bound on the note of an event.
const MaxBytes = 1024

// Note returns text as the note of an event: valid UTF-8 of at most MaxBytes, with a mark where something was cut off.
func Note(text string) string {
	const mark = "…"
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= MaxBytes {
		return text
	}
	return strings.ToValidUTF8(text[:MaxBytes-len(mark)], "") + mark
}
