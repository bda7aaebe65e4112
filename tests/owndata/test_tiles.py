"""Labelled pictures cut into tiles: the same pixels and the same labels, and trained on."""

import json

import cv2
import labelled_pictures as labelled
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from mmffnet.errors import UsageError
from mmffnet.inference.tiles import Tiling
from mmffnet.owndata.finetune import finetune
from mmffnet.owndata.formats import OwnData, Picture, read_mask, read_own_data
from mmffnet.owndata.tiles import cut_into_tiles

TILE = 48  # pictures have 96 x 64


def run_lengths(thing):
    mask = rle.merge(rle.frPyObjects(thing['segmentation'], labelled.HEIGHT, labelled.WIDTH))
    return thing | dict(segmentation=dict(size=mask['size'], counts=mask['counts'].decode()))


@pytest.mark.parametrize('outline', [dict, run_lengths], ids=['polygons', 'run lengths'])
def test_objects_are_clipped(tmp_path, outline):
    data = read_own_data(labelled.write_coco(tmp_path / 'data'))
    for picture in data.pictures:
        picture.objects = [outline(thing) for thing in picture.objects]
    tiled = cut_into_tiles(data, Tiling(TILE), tmp_path / 'tiles')
    assert tiled.root == tmp_path / 'tiles'
    windows = Tiling(TILE).windows(labelled.HEIGHT, labelled.WIDTH)
    assert len(tiled.pictures) == len(data.pictures) * len(windows) == 6 * 6
    for k, tile in enumerate(tiled.pictures):
        picture, (x1, y1, x2, y2) = data.pictures[k // 6], windows[k % 6]
        assert tile.split == picture.split and tile.path.parent.name == picture.path.name
        pixels = cv2.imread(str(tile.path)).astype(int)
        assert np.abs(pixels - cv2.imread(str(picture.path))[y1:y2, x1:x2]).mean() < 6  # JPEG
        expected, much = [], 0
        for thing in picture.objects:
            shape = thing['segmentation']
            if isinstance(shape, list):
                shape = rle.merge(rle.frPyObjects(shape, labelled.HEIGHT, labelled.WIDTH))
            mask = rle.decode(shape)
            expected.append((thing, mask[y1:y2, x1:x2]))
            much += expected[-1][1].sum() > 0.3 * mask.sum()
        assert len(tile.objects) >= much
        for thing in tile.objects:
            mask = rle.decode(thing['segmentation'])
            same = [m for t, m in expected if t['category'] == thing['category']]
            assert min(float((mask != m).mean()) for m in same) < 0.002
            x, y, w, h = map(int, thing['bbox'])
            assert mask[y : y + h, x : x + w].sum() == mask.sum() > 0


def test_boxes_are_clipped_and_small_pictures_are_copied(tmp_path):
    data = read_own_data(labelled.write_voc(tmp_path / 'data'))
    small = cut_into_tiles(data, Tiling(96), tmp_path / 'same')
    for one, other in zip(small.pictures, data.pictures, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()
        assert one.objects == other.objects
    tiled = cut_into_tiles(data, Tiling(52, 0), tmp_path / 'tiles')
    a2 = [tile for tile in tiled.pictures if tile.path.parent.name == 'a2.jpg']
    # the dog from 50, 10 to 90, 60: those on the left see two columns of it, which is too little
    found = {tile.path.stem: [thing['bbox'] for thing in tile.objects] for tile in a2}
    assert found == {'0_0': [], '44_0': [[6, 10, 40, 42]], '0_12': [], '44_12': [[6, 0, 40, 48]]}


@pytest.mark.parametrize('kind', ['index', 'colour', 'palette'])
def test_masks_are_cut(tmp_path, kind):
    data = read_own_data(labelled.write_masks(tmp_path / 'data', kind))
    tiled = cut_into_tiles(data, Tiling(TILE), tmp_path / 'tiles')
    windows = Tiling(TILE).windows(labelled.HEIGHT, labelled.WIDTH)
    for k, tile in enumerate(tiled.pictures):
        x1, y1, x2, y2 = windows[k % 6]
        whole = read_mask(data.pictures[k // 6].mask)[y1:y2, x1:x2]
        np.testing.assert_array_equal(read_mask(tile.mask), whole)


def test_pictures_are_turned_as_exif_says(tmp_path):
    image = Image.fromarray(np.tile(np.arange(100, dtype=np.uint8)[:, None, None], (1, 60, 3)))
    exif = image.getexif()
    exif[0x0112] = 6
    (tmp_path / 'data').mkdir()
    image.save(tmp_path / 'data' / 'a.jpg', exif=exif, quality=95)
    data = OwnData(tmp_path / 'data', 'voc', 'det', [], [Picture(tmp_path / 'data' / 'a.jpg')])
    tiled = cut_into_tiles(data, Tiling(60, 0), tmp_path / 'tiles')
    assert [tile.path.name for tile in tiled.pictures] == ['0_0.jpg', '40_0.jpg']
    assert tiled.pictures[0].size == (60, 60)
    row = cv2.imread(str(tiled.pictures[0].path))[30, :, 0].astype(int)
    assert np.abs(row - np.arange(99, 39, -1)).max() <= 3


@pytest.mark.parametrize('suffix', ['pgm', 'gif', 'bmp'])
def test_formats_of_pictures(tmp_path, suffix):
    """Tiles have three channels, which some formats cannot hold."""
    (tmp_path / 'data').mkdir()
    path = tmp_path / 'data' / f'a.{suffix}'
    Image.fromarray(np.full((60, 100), 90, np.uint8)).save(path)
    data = OwnData(tmp_path / 'data', 'voc', 'det', [], [Picture(path)])
    tiled = cut_into_tiles(data, Tiling(60, 0), tmp_path / 'tiles')
    assert [cv2.imread(str(tile.path)).shape for tile in tiled.pictures] == [(60, 60, 3)] * 2


def test_what_is_refused(tmp_path):
    root = labelled.write_folders(tmp_path / 'classes')
    with pytest.raises(UsageError, match='--tiles'):
        finetune(str(root), str(tmp_path / 'out'), tiles=64)
    with pytest.raises(UsageError, match='tiles'):
        finetune(str(labelled.write_voc(tmp_path / 'voc')), str(tmp_path / 'out'), tiles=0)


@pytest.mark.slow
@pytest.mark.parametrize('task', ['instance', 'seg'])
def test_trains_on_tiles(tmp_path, task, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write = dict(instance=labelled.write_coco, seg=labelled.write_masks)[task]
    root, out, said = write(tmp_path / 'data'), tmp_path / 'out', []
    page = finetune(str(root), str(out), epochs=1, tiles=TILE, size=64, say=said.append)
    assert '36 tiles of 48 pixels' in said
    assert f'--tiles {TILE}' in page.read_text()
    cfg = Config.fromfile(out / 'config.py')
    assert (cfg.size, cfg.tiles) == (64, TILE)
    assert len((out / 'config.py').read_text().splitlines()) <= 40
    if task == 'instance':
        for part, number in (('train', 24), ('val', 12)):
            coco = COCO(out / 'annotations' / f'{part}.json')
            assert len(coco.imgs) == number
            areas = [rle.area(coco.annToRLE(one)) == one['area'] for one in coco.anns.values()]
            assert areas and all(areas)
    matrix = json.loads((out / 'results.json').read_text())['confusion']
    if task == 'seg':
        assert sum(map(sum, matrix)) == 12 * TILE * TILE
