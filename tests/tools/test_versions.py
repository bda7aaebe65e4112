"""What tries mmffnet with other versions, and the page about it."""

import re
import runpy
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEV = ROOT / 'tools' / 'dev'


def test_a_step_that_fails_is_reported_and_leaves_nothing_behind(capsys):
    smoke = runpy.run_path(str(DEV / 'smoke.py'))
    before = Path.cwd()

    def fail():
        Path('file').touch()
        print('noise')
        raise ValueError(f'{Path.cwd()}/file is\n wrong')

    assert smoke['run'](fail) == 'ValueError: file is wrong'
    assert Path.cwd() == before
    assert smoke['run'](smoke['STEPS']['official file loads']) == 'ok'
    assert capsys.readouterr().out == ''


def test_page_is_made_of_the_reports():
    table = runpy.run_path(str(DEV / 'versions_table.py'))
    page = (ROOT / 'docs' / 'versions.md').read_text()
    assert page == table['render'](table['read_reports']())


def test_every_environment_has_been_tried():
    rows = re.search(r"^table='\n(.*?)^'", (DEV / 'matrix.sh').read_text(), re.M | re.S)
    names = {line.split()[0] for line in rows[1].splitlines()}
    assert names == {path.stem for path in (ROOT / 'docs' / 'versions').glob('*.json')}


def test_unknown_environment():
    done = subprocess.run([DEV / 'matrix.sh', 'py27'], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'py27' in done.stderr and done.stderr.count('\n') == 1
