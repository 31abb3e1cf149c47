// Package store keeps the records of volumes and snapshots on disk, each in a folder of its own beside the image that it
// describes:
//
//	<state dir>/volumes/<id>/{record.json,image}
//	<state dir>/snapshots/<id>/{record.json,image}
//
// A folder appears and vanishes by one rename, and a record is replaced by one rename, so a process that is killed at any
// moment leaves either the old state or the new one. What a kill left half made is removed at the next Open.
package store

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotFound says that no object has the ID.
var ErrNotFound = errors.New("not found")

// AccessType says what a volume is published as.
type AccessType string

// The access types.
const (
	Block      AccessType = "Block"
	Filesystem AccessType = "Filesystem"
)

// Publication is a path at which a volume was published, or was about to be when the driver was killed: only what is also
// mounted counts.
type Publication struct {
	TargetPath string `json:"targetPath"`
	ReadOnly   bool   `json:"readOnly,omitempty"`
	// AccessMode is the name of the CSI access mode.
	AccessMode string `json:"accessMode"`
}

// Volume describes a volume.
type Volume struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	SizeBytes  int64      `json:"sizeBytes"`
	AccessType AccessType `json:"accessType"`
	// SourceSnapshotID and SourceVolumeID say what it was copied from, if it was.
	SourceSnapshotID string `json:"sourceSnapshotID,omitempty"`
	SourceVolumeID   string `json:"sourceVolumeID,omitempty"`
	// StagingPath is where the volume was staged last; empty if it was unstaged.
	StagingPath string        `json:"stagingPath,omitempty"`
	Published   []Publication `json:"published,omitempty"`
	// Freezing names the mount point of a filesystem that is being frozen for a copy. If the driver finds it set
	// when it starts, the one before was killed in the middle, and the filesystem must be thawed.
	Freezing string `json:"freezing,omitempty"`
}

func (v Volume) key() (id, name string) { return v.ID, v.Name }

// Snapshot describes a snapshot.
type Snapshot struct {
	ID             string     `json:"id"`
	Name           string     `json:"name"`
	SourceVolumeID string     `json:"sourceVolumeID"`
	SizeBytes      int64      `json:"sizeBytes"`
	AccessType     AccessType `json:"accessType"`
	CreatedAt      time.Time  `json:"createdAt"`
}

func (s Snapshot) key() (id, name string) { return s.ID, s.Name }

// NewID returns a random ID with the prefix.
func NewID(prefix string) string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // It never fails (crypto/rand.Read).
	return prefix + hex.EncodeToString(b[:])
}

// Store is the content of a state folder.
type Store struct {
	Volumes   *Collection[Volume]
	Snapshots *Collection[Snapshot]
}

// Open reads the state folder and makes it if it is missing.
func Open(dir string) (*Store, error) {
	volumes, err := openCollection[Volume](filepath.Join(dir, "volumes"))
	if err != nil {
		return nil, err
	}
	snapshots, err := openCollection[Snapshot](filepath.Join(dir, "snapshots"))
	if err != nil {
		return nil, err
	}
	return &Store{Volumes: volumes, Snapshots: snapshots}, nil
}

type record interface {
	key() (id, name string)
}

// Collection holds the records of one kind. Its methods may be called concurrently, but not for the same ID or name.
type Collection[T record] struct {
	dir  string
	mu   sync.Mutex
	byID map[string]T
}

const (
	recordFile = "record.json"
	imageFile  = "image"
	// Folders with these prefixes are not objects: they are being made or removed.
	makingPrefix   = ".making-"
	removingPrefix = ".removing-"
)

func openCollection[T record](dir string) (*Collection[T], error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	c := &Collection[T]{dir: dir, byID: map[string]T{}}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") {
			if err := os.RemoveAll(path); err != nil {
				return nil, fmt.Errorf("remove leftover: %w", err)
			}
			continue
		}
		r, err := readRecord[T](filepath.Join(path, recordFile))
		if err != nil {
			return nil, err
		}
		if id, _ := r.key(); id != e.Name() {
			return nil, fmt.Errorf("open store: record in %s is of %q", path, id)
		}
		c.byID[e.Name()] = r
	}
	return c, nil
}

func readRecord[T record](path string) (T, error) {
	var r T
	b, err := os.ReadFile(path)
	if err != nil {
		return r, fmt.Errorf("read record: %w", err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read record %s: %w", path, err)
	}
	return r, nil
}

// ImagePath returns the path of the image that belongs to id.
func (c *Collection[T]) ImagePath(id string) string { return filepath.Join(c.dir, id, imageFile) }

// Get returns the record of id, or an error that wraps ErrNotFound.
func (c *Collection[T]) Get(id string) (T, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.byID[id]
	if !ok {
		return r, fmt.Errorf("%q: %w", id, ErrNotFound)
	}
	return r, nil
}

// ByName returns the record with the name.
func (c *Collection[T]) ByName(name string) (r T, ok bool) {
	for _, r := range c.List() {
		if _, n := r.key(); n == name {
			return r, true
		}
	}
	return r, false
}

// List returns all records in the order of their IDs.
func (c *Collection[T]) List() []T {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]T, 0, len(c.byID))
	for _, id := range slices.Sorted(maps.Keys(c.byID)) {
		all = append(all, c.byID[id])
	}
	return all
}

// Create adds r with the image that build makes at the path it is given. If build fails, nothing remains.
func (c *Collection[T]) Create(r T, build func(imagePath string) error) (err error) {
	id, _ := r.key()
	making := filepath.Join(c.dir, makingPrefix+id)
	if err := os.Mkdir(making, 0o750); err != nil {
		return fmt.Errorf("create %s: %w", id, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(making))
		}
	}()
	if err := build(filepath.Join(making, imageFile)); err != nil {
		return err
	}
	if err := writeRecord(making, r); err != nil {
		return fmt.Errorf("create %s: %w", id, err)
	}
	if err := os.Rename(making, filepath.Join(c.dir, id)); err != nil {
		return fmt.Errorf("create %s: %w", id, err)
	}
	c.mu.Lock()
	c.byID[id] = r
	c.mu.Unlock()
	return syncDir(c.dir)
}

// Update replaces the record that has r's ID.
func (c *Collection[T]) Update(r T) error {
	id, _ := r.key()
	if _, err := c.Get(id); err != nil {
		return err
	}
	if err := writeRecord(filepath.Join(c.dir, id), r); err != nil {
		return fmt.Errorf("update %s: %w", id, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byID[id] = r
	return nil
}

// Delete removes the record and the image of id. A file descriptor that is open on the image stays valid.
func (c *Collection[T]) Delete(id string) error {
	if _, err := c.Get(id); err != nil {
		return err
	}
	removing := filepath.Join(c.dir, removingPrefix+id)
	if err := os.Rename(filepath.Join(c.dir, id), removing); err != nil {
		return fmt.Errorf("delete %s: %w", id, err)
	}
	c.mu.Lock()
	delete(c.byID, id)
	c.mu.Unlock()
	if err := os.RemoveAll(removing); err != nil {
		return fmt.Errorf("delete %s: %w", id, err)
	}
	return syncDir(c.dir)
}

func writeRecord(dir string, r record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, recordFile)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes the names in dir durable. Filesystems that cannot sync a folder say so with EINVAL.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) {
		err = nil
	}
	return errors.Join(err, d.Close())
}
