package config

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Duration is a time in the notation of time.ParseDuration, such as 90s or 1h30m. A value that is none is kept, so that
// Validate can name it together with all others and with its field.
type Duration struct {
	time.Duration
	bad string
}

// UnmarshalJSON implements json.Unmarshaler. It never fails.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var text string
	if string(data) == "null" {
		return nil
	}
	*d = Duration{bad: string(data)}
	if err := json.Unmarshal(data, &text); err != nil {
		return nil //nolint:nilerr // the value is kept for Validate
	}
	d.bad = text
	if parsed, err := time.ParseDuration(text); err == nil {
		*d = Duration{Duration: parsed}
	}
	return nil
}

// Quantity is an amount of a resource, such as 50m or 64Mi. A value that is none is kept like that of a Duration.
type Quantity struct {
	resource.Quantity
	bad string
}

// UnmarshalJSON implements json.Unmarshaler. It never fails.
func (q *Quantity) UnmarshalJSON(data []byte) error {
	*q = Quantity{bad: string(data)}
	var parsed resource.Quantity
	if err := parsed.UnmarshalJSON(data); err == nil && string(data) != "null" {
		*q = Quantity{Quantity: parsed}
	}
	return nil
}

// sortedKeys returns the keys of m in order, so that complaints come in the same one every time.
func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}
