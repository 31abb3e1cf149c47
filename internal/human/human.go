// Package human prints numbers for people.
package human

import "fmt"

// Bytes prints a number of bytes with a binary unit and at most one decimal.
func Bytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 1023.95 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	if rounded := fmt.Sprintf("%.1f", value); rounded[len(rounded)-2:] != ".0" {
		return fmt.Sprintf("%s %ciB", rounded, units[unit])
	}
	return fmt.Sprintf("%.0f %ciB", value, units[unit])
}
