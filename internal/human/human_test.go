package human

import "testing"

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 12288: "12 KiB", 1500: "1.5 KiB", 1<<20 - 1: "1 MiB", 10 << 20: "10 MiB",
		1536 << 20: "1.5 GiB", 1 << 40: "1 TiB", 1<<63 - 1: "8 EiB",
	} {
		if got := Bytes(n); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
}
