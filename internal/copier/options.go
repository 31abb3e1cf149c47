// Package copier copies the extents of a list of changed blocks, and nothing else, from one volume or image to another:
// `kubectl cbr apply`.
//
// The list is verified as a whole, and everything that can be refused is refused, before the first byte is written. What
// was copied is a prefix of the list's extents at every moment, so that a journal needs no more than an offset and a
// digest: it is saved after the target was synced up to there. A copy that was ended in any way continues from it if the
// target, which is read up to there, still has that digest.
package copier

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrRefused is what Run's errors wrap when nothing was written because the request makes no sense or is dangerous.
var ErrRefused = errors.New("nothing was written")

// ErrDiffers is what Run's errors wrap when the verification found that the target does not hold the source's data.
var ErrDiffers = errors.New("the target differs from the source")

// DefaultWorkers is how many extents are read and written at the same time unless Options say otherwise.
const DefaultWorkers = 4

// MaxWorkers bounds the memory: each worker holds up to 2 MiB.
const MaxWorkers = 256

// Options say what to copy.
type Options struct {
	// List is the file or Block volume that holds the list.
	List string
	// Source and Target are block devices or regular files. A target that does not exist becomes a sparse file of the
	// capacity's size.
	Source, Target string
	// Workers is how many extents are copied at the same time; 0 for DefaultWorkers.
	Workers int
	// Shard is the part of the list to copy; the zero value means all of it.
	Shard Shard
	// Journal is the file that remembers how far the copy came. Empty: the target's name with ".journal" behind it (and
	// the shard's number) if the target is a regular file, none if it is a device.
	Journal string
	// Verify has both sides read again after the copy, and compared.
	Verify bool
	// Buffered keeps all data in the page cache. Otherwise block devices are read and written past it, where their
	// alignment allows.
	Buffered bool
	// Force allows a source or an existing target file whose size is not the list's volume capacity, and a source that
	// is mounted for writing.
	Force bool
	// Progress is called after every few extents, by one goroutine at a time; nil for nobody.
	Progress func(Progress)
	// Notice is called with what a user should know although it is no error; nil for nobody.
	Notice func(string)

	checkpointBytes int64 // between checkpoints, in tests
}

// Shard is one of several parts of a list, of about equally many bytes. The zero value is the whole list.
type Shard struct {
	// Index counts from 0.
	Index int
	// Total is the number of parts.
	Total int
}

// ParseShard reads "I/N", for part I, which counts from 0, of N.
func ParseShard(s string) (Shard, error) {
	index, total, found := strings.Cut(s, "/")
	i, errI := strconv.Atoi(index)
	n, errN := strconv.Atoi(total)
	if !found || errI != nil || errN != nil || n < 1 || i < 0 || i >= n {
		return Shard{}, fmt.Errorf("shard %q is not I/N with 0 <= I < N, for example 0/4 for the first of four parts", s)
	}
	return Shard{Index: i, Total: n}, nil
}

func (s Shard) String() string { return fmt.Sprintf("%d/%d", s.Index, max(s.Total, 1)) }

// whole says that s is not one of several parts.
func (s Shard) whole() bool { return s.Total <= 1 }

// Phase is what a copy does.
type Phase string

// The phases, in their order.
const (
	Checking  Phase = "checking what an earlier run copied"
	Copying   Phase = "copying"
	Verifying Phase = "verifying"
)

// Progress is how far a copy is. Bytes are those of the extents.
type Progress struct {
	Phase Phase
	// DoneBytes counts what an earlier run did, too.
	DoneBytes, TotalBytes int64
}

// Result describes a copy. Where Run fails, it describes what was done until then.
type Result struct {
	// Extents and Bytes are those of the list, or of its shard.
	Extents int64 `json:"extents"`
	Bytes   int64 `json:"bytes"`
	// CapacityBytes is the size of the list's volume.
	CapacityBytes int64 `json:"capacityBytes"`
	// ResumedBytes were not copied, because a journal says that an earlier run had copied them, and the target still held them.
	ResumedBytes int64 `json:"resumedBytes"`
	// ReadBytes is what was read from the source, without the verification.
	ReadBytes int64 `json:"readBytes"`
	// WrittenBytes is what was written to the target; ZeroBytes is what was read as zeros and became a hole instead.
	WrittenBytes int64 `json:"writtenBytes"`
	ZeroBytes    int64 `json:"zeroBytes"`
	// Verified says that both sides were read again and were equal.
	Verified bool `json:"verified"`
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
}
