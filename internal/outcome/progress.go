package outcome

import (
	"encoding/json"
	"errors"
	"fmt"
)

// ProgressVersion is the version of the progress document that this package writes. A reader refuses any other.
const ProgressVersion = 1

const (
	// ProgressPort is the TCP port on which the populator of a pod says how far it is.
	ProgressPort = 8082
	// ProgressPath is the path of the progress document there.
	ProgressPath = "/progress"
	// MaxProgressBytes bounds the document; a reader takes no more.
	MaxProgressBytes = 1024
)

// Progress is what a running populator says about how far it is. It holds nothing secret: whoever reaches the pod may read
// it. Offsets and sizes are bytes.
type Progress struct {
	Version int `json:"version"`
	// EntryCount is the number of extents that the driver sent so far, before rounding and merging.
	EntryCount int64 `json:"entryCount"`
	// OffsetBytes is the end of the last of them: the part of the volume that is listed.
	OffsetBytes int64 `json:"offsetBytes"`
	// VolumeCapacityBytes is 0 until the driver's first message.
	VolumeCapacityBytes int64 `json:"volumeCapacityBytes"`
	// ListBytes is the size of the list so far.
	ListBytes int64 `json:"listBytes"`
	// Resumes counts how often the stream was continued after an interruption.
	Resumes int `json:"resumes"`
}

// Percent is the listed part of the volume, from 0 to 100, rounded down.
func (p Progress) Percent() int {
	if p.VolumeCapacityBytes <= 0 {
		return 0
	}
	return int(min(max(100*(float64(p.OffsetBytes)/float64(p.VolumeCapacityBytes)), 0), 100))
}

// Marshal renders the document.
func (p Progress) Marshal() ([]byte, error) {
	p.Version = ProgressVersion
	data, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode progress: %w", err)
	}
	return data, nil
}

// ParseProgress reads a document. It fails on anything that no populator of this version would say.
func ParseProgress(data []byte) (Progress, error) {
	var p Progress
	if err := json.Unmarshal(data, &p); err != nil {
		return Progress{}, fmt.Errorf("parse progress: %w", err)
	}
	if p.Version != ProgressVersion {
		return Progress{}, fmt.Errorf("parse progress: version %d, want %d", p.Version, ProgressVersion)
	}
	if min(p.EntryCount, p.OffsetBytes, p.VolumeCapacityBytes, p.ListBytes, int64(p.Resumes)) < 0 {
		return Progress{}, errors.New("parse progress: a number is negative")
	}
	if p.OffsetBytes > p.VolumeCapacityBytes {
		return Progress{}, fmt.Errorf("parse progress: offset %d of %d", p.OffsetBytes, p.VolumeCapacityBytes)
	}
	return p, nil
}
