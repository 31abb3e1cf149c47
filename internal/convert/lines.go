package convert

import (
	"bufio"
	"strconv"

	"github.com/cbt-populator/cbt-populator/api/blocklist"
)

// writeNDJSON writes a JSON object a line.
func writeNDJSON(w *bufio.Writer, list List) error {
	return writeLines(w, list, func(b []byte, e blocklist.Extent) []byte { return append(appendObject(b, e), '\n') })
}

// writeTSV writes offset, tab, length a line.
func writeTSV(w *bufio.Writer, list List) error {
	return writeLines(w, list, func(b []byte, e blocklist.Extent) []byte {
		b = append(strconv.AppendInt(b, e.Offset, 10), '\t')
		return append(strconv.AppendInt(b, e.Length, 10), '\n')
	})
}

// appendObject appends an extent as a JSON object with the API's field names. Unlike the upstream lister it never leaves
// out an offset of 0.
func appendObject(b []byte, e blocklist.Extent) []byte {
	b = append(b, `{"byte_offset":`...)
	b = strconv.AppendInt(b, e.Offset, 10)
	b = append(b, `,"size_bytes":`...)
	b = strconv.AppendInt(b, e.Length, 10)
	return append(b, '}')
}

// writeLines writes what line appends for each extent.
func writeLines(w *bufio.Writer, list List, line func([]byte, blocklist.Extent) []byte) error {
	var buf []byte
	for batch, err := range list.Extents() {
		if err != nil {
			return err
		}
		for _, e := range batch {
			buf = line(buf[:0], e)
			if _, err := w.Write(buf); err != nil {
				return err
			}
		}
	}
	return nil
}
