"""The vocabulary of findings: one name a finding, the publishers' words spelt as theirs, the README's table."""

import re
from pathlib import Path

from data_prep.readers.medmnist import CLASS_NAMES
from data_prep.vocabulary import FINDINGS, SOURCES, classes_of, names_of, table

README = Path(__file__).parents[2] / "data_prep/readers/README.md"
# The 193 labels of PadChest as its files write them.
PADCHEST = """COPD signs; Chilaiditi sign; NSG tube; abnormal foreign body; abscess; adenopathy; air bronchogram; air
fluid level; air trapping; alveolar pattern; aortic aneurysm; aortic atheromatosis; aortic button enlargement; aortic
elongation; aortic endoprosthesis; apical pleural thickening; artificial aortic heart valve; artificial heart valve;
artificial mitral heart valve; asbestosis signs; ascendent aortic elongation; atelectasis; atelectasis basal; atypical
pneumonia; axial hyperostosis; azygoesophageal recess shift; azygos lobe; blastic bone lesion; bone cement; bone
metastasis; breast mass; bronchiectasis; bronchovascular markings; bullas; calcified adenopathy; calcified densities;
calcified fibroadenoma; calcified granuloma; calcified mediastinal adenopathy; calcified pleural plaques; calcified
pleural thickening; callus rib fracture; cardiomegaly; catheter; cavitation; central vascular redistribution; central
venous catheter; central venous catheter via jugular vein; central venous catheter via subclavian vein; central venous
catheter via umbilical vein; cervical rib; chest drain tube; chronic changes; clavicle fracture; consolidation;
costochondral junction hypertrophy; costophrenic angle blunting; cyst; dai; descendent aortic elongation; dextrocardia;
diaphragmatic eventration; double J stent; dual chamber device; electrical device; emphysema; empyema; end on vessel;
endoprosthesis; endotracheal tube; esophagic dilatation; exclude; external foreign body; fibrotic band; fissure
thickening; flattened diaphragm; fracture; gastrostomy tube; goiter; granuloma; ground glass pattern; gynecomastia;
heart insufficiency; heart valve calcified; hemidiaphragm elevation; hiatal hernia; hilar congestion; hilar enlargement;
humeral fracture; humeral prosthesis; hydropneumothorax; hyperinflated lung; hypoexpansion; hypoexpansion basal;
increased density; infiltrates; interstitial pattern; kerley lines; kyphosis; laminar atelectasis; lepidic
adenocarcinoma; lipomatosis; lobar atelectasis; loculated fissural effusion; loculated pleural effusion; lung
metastasis; lung vascular paucity; lymphangitis carcinomatosa; lytic bone lesion; major fissure thickening; mammary
prosthesis; mass; mastectomy; mediastinal enlargement; mediastinal mass; mediastinal shift; mediastinic lipomatosis;
metal; miliary opacities; minor fissure thickening; multiple nodules; nephrostomy tube; nipple shadow; nodule; non axial
articular degenerative changes; normal; obesity; osteopenia; osteoporosis; osteosynthesis material; pacemaker; pectum
carinatum; pectum excavatum; pericardial effusion; pleural effusion; pleural mass; pleural plaques; pleural thickening;
pneumomediastinum; pneumonia; pneumoperitoneo; pneumothorax; post radiotherapy changes; prosthesis; pseudonodule;
pulmonary artery enlargement; pulmonary artery hypertension; pulmonary edema; pulmonary fibrosis; pulmonary
hypertension; pulmonary mass; pulmonary venous hypertension; reservoir central venous catheter; respiratory distress;
reticular interstitial pattern; reticulonodular interstitial pattern; rib fracture; right sided aortic arch; round
atelectasis; sclerotic bone lesion; scoliosis; segmental atelectasis; single chamber device; soft tissue mass;
sternoclavicular junction hypertrophy; sternotomy; subacromial space narrowing; subcutaneous emphysema; suboptimal
study; superior mediastinal enlargement; supra aortic elongation; surgery; surgery breast; surgery heart; surgery
humeral; surgery lung; surgery neck; suture material; thoracic cage deformation; total atelectasis; tracheal shift;
tracheostomy tube; tuberculosis; tuberculosis sequelae; unchanged; vascular hilar enlargement; vascular redistribution;
ventriculoperitoneal drain tube; vertebral anterior compression; vertebral compression; vertebral degenerative changes;
vertebral fracture; volume loss"""


def test_the_readmes_table_is_the_vocabulary():
    assert table() in README.read_text(), "write table() of data_prep/vocabulary.py into data_prep/readers/README.md"


def test_a_finding_has_one_name():
    assert len({re.sub(r"[^a-z]", "", name.lower()) for name in FINDINGS}) == len(FINDINGS)
    for source in SOURCES:
        assert (
            set(classes_of(source)) == set(SOURCES[source]) == {n for names in names_of(source).values() for n in names}
        )
        assert list(classes_of(source)) == sorted(classes_of(source), key=FINDINGS.index)


def test_sources_have_as_many_classes_as_their_publishers_say():
    sizes = {source: len(classes_of(source)) for source in SOURCES}
    assert sizes["chexpert"] == 14 and sizes["cxr_lt"] == 45 and sizes["nih_chestxray14"] == 15
    assert sizes["vindr_cxr"] == 28 and set(classes_of("chexpert")) < set(classes_of("cxr_lt"))


def test_padchests_words_are_the_publishers():
    published = {word.lower() for word in " ".join(PADCHEST.split()).split("; ")}
    assert len(published) == 193
    assert set(names_of("padchest")) <= published


def test_sources_share_names_for_the_same_finding():
    words = {"nih_chestxray14": "effusion", "padchest": "pleural effusion", "vindr_cxr": "pleural effusion"}
    words |= {"chexpert": "pleural effusion", "cxr_lt": "pleural effusion"}
    assert {names_of(source)[word] for source, word in words.items()} == {("Pleural Effusion",)}
    assert names_of("cxr_lt")["normal"] == names_of("padchest")["normal"] == names_of("vindr_cxr")["no finding"]
    assert set(CLASS_NAMES["chestmnist"]) == set(classes_of("nih_chestxray14")) - {"No Finding"}
