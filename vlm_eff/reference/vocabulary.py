"""The closed word list of the reference model and its processor."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from .glyphs import CHARACTERS
from .model import PATCH_SIZE
from .scenes import CELLS, COLOURS, IMAGE_SIZE, SHAPES, SIZES, WORDS

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PUNCTUATION = tuple("?:.,!;'\"()-/+=%&*#@")
_TEMPLATES = """
user assistant system is there a an the no not what which where how many in of image present does contain color shape
object objects are size read word text say written digit shown do you see left right above below yes
"""
# not trained: they only keep free prompts from turning into unknown tokens
_SPARE = """
able about across act action add after again against age ago agree air all allow almost alone along already also
although always am among and animal animals another answer any anyone anything appear apple area around as ask at away
baby back background bad bag ball banana banner bar base be because become bedroom been before began begin behind
being believe beside best better between beyond big bike bird birds boat body book books bottle bottom bowl boy boys
bread break bridge bright bring brown building buildings built but buy by cake call came camera can caption card care
carry cars case cats cell centre chair chairs change child children choose circles city class clean clear clock close
closer closest clothes cloud clouds coat coffee cold colors colour coloured come compare computer contains cook corner
corners could count country course cover crosses crowd cut dark day deep describe detail detailed different dinner
dish distance dogs done door down draw drawing drawn dress drink drive during each early earth east easy eat edge
eight eighteen either eleven else empty end enough entire even evening event ever every everyone everything exact
example eye eyes face fact fall family far farther fast father feel feet few fifteen field fifth figure final find
finish fire first fish five floor flower flowers fly follow food foot football for forest form found four fourteen
fourth free fresh friend from front fruit full game garden gave get girl give given glass go goes gold good got grass
great ground group grow guess had hair half hand hands happen happy hard has have he head hear heart heavy height held
help her here high him his hold holding home horse horses hot hour house huge human hundred i idea if images important
inch indoors inside instead into it item items its itself job jump just keep kind kitchen knife know known lake lamp
land language laptop last late later laugh law lay lead leaf learn least leave letter letters level lie life light
like likely line lines list listen little live local location long look looking looks lot love low made main make man
map mark match may me mean men metal might mile mind mine minute mirror miss model moment money month more morning
most mother mountain mouse mouth move much music must my name named near nearest need never new next nice night nine
nineteen none nor north nose note nothing now number numbers ocean off offer office often old on once one only open or
orange order other others our out outdoors outside over own page pair paper park part pattern people person phone
photo picture pictures piece pink place plane plant plants plate play player please point position possible power
print probably purple put question quick quiet rain ranges reach ready real rectangles reason relative rest rings
river road rock room round row rows run running same sand sat saw scene school season second seen sentence seven
seventeen several shadow shall shapes she ship shirt shoes shop short should show shows side sign silver simple since
single sit sitting six sixteen sky sleep smallest snow so sofa some someone something song soon sort sound south space
speak sport square squares stand standing stars start station stay step still stop store street strong such summer
sure surface table take taken tall team tell ten than that their them then these they thing things think third
thirteen this those thousand three through time tiny to today together told too took total toward town toy traffic
train tree trees triangles truck true try turn twelve twenty two type umbrella under until up upon upper us use used
using very view visible walk wall want warm was watch water way we wear wearing weather week well went were west wet
wheel when while white who whole whose why wide width will wind window winter wish with without woman women wood
wooden words work world worn would write writing wrong year young your zero zebra diamond arrow largest biggest lower
shown seen row column grid false true lowest highest
"""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image> ' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """Return every token in the order of its id."""
    numbers = [str(number) for number in range(101)]
    letters = [character.lower() for character in CHARACTERS if character.isalpha()]
    cells = " ".join(CELLS).split()
    words = [*_TEMPLATES.split(), *SHAPES, *COLOURS, *SIZES, *cells, *WORDS, *numbers, *letters, *_SPARE.split()]
    return list(dict.fromkeys([*SPECIAL, *PUNCTUATION, *words]))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer: lower case, punctuation apart, one id a word."""
    table = {word: index for index, word in enumerate(vocabulary())}
    backend = Tokenizer(WordLevel(table, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    backend.decoder = decoders.Sequence([decoders.Replace(Regex("^"), " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", table["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=1024,
    )


def build_processor() -> LlavaProcessor:
    """Build the processor: pictures to 96x96 without cropping, one `<image>` to 144 placeholders."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )
